"""A data module as Lightning takes it: loaders are made after all processes of a job have started."""

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from lrnnx_app.data.module import DataModule, Unfinished, finished
from lrnnx_app.spec import Batch


class Loaders(LightningDataModule):
    """The splits of a data module. In training, of each `together` processes all get the same batches."""

    def __init__(self, data: DataModule, together: int = 1) -> None:
        super().__init__()
        self.data, self.together = data, together

    def train_dataloader(self) -> DataLoader:
        """On a CPU the processes that make batches finish them; a GPU is faster."""
        on_cpu = self.trainer is None or self.trainer.strategy.root_device.type == "cpu"
        return self.data.loader("train", on_cpu, self.together)

    def on_after_batch_transfer(self, batch: Batch | Unfinished, dataloader_idx: int) -> Batch:
        return finished(batch)

    def val_dataloader(self) -> DataLoader:
        return self.data.loader("valid")

    def test_dataloader(self) -> DataLoader:
        return self.data.loader("test")
