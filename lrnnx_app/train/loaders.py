"""A data module as Lightning takes it: loaders are made after all processes of a job have started."""

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from lrnnx_app.data.module import DataModule


class Loaders(LightningDataModule):
    """The splits of a data module."""

    def __init__(self, data: DataModule) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> DataLoader:
        return self.data.loader("train")

    def val_dataloader(self) -> DataLoader:
        return self.data.loader("valid")

    def test_dataloader(self) -> DataLoader:
        return self.data.loader("test")
