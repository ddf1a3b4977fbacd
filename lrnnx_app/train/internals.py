"""The parts of Lightning that training uses although they are not documented.

A test checks that the installed Lightning still has them. Each key is a path from an object of Lightning's:
it goes through attributes, keys in [] and results of calls in (). The value says who uses it, and for what.
"""

PLACES = {
    "trainer.fit_loop.state_dict()[epoch_progress][current]": "checkpoints: the place at the end of a step",
    "trainer.fit_loop.epoch_loop.restarting": "checkpoints: no validation once more after a resume",
    "trainer.fit_loop.batch_idx": "progress: the place in an epoch",
    "trainer.lr_scheduler_configs": "rates: those of the recipe after a resume",
    "trainer._checkpoint_connector.dump_checkpoint": "checkpoints: the content of one in shards",
    "fsdp._save_distributed_checkpoint": "strategies: whether state dicts are those of parts",
    "launcher.procs": "processes: those that Lightning started, to watch them",
    "ddp._setup_model": "strategies: the model wrapped on the stream that trains",
    "ddp._ddp_kwargs": "strategies: the options for that",
    "ddp.determine_ddp_device_ids": "strategies: the devices for that",
    "best.state_dict()[best_k_models]": "checkpoints: the best of a run that was moved",
    "best.state_dict()[dirpath]": "checkpoints: their folder",
    "best.state_dict()[best_model_path]": "checkpoints: and the best one",
    "bar.is_disabled": "progress: other processes draw no bar",
}
