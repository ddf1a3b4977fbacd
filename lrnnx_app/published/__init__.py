"""Published language models: a folder of the Hugging Face hub becomes a run, and a run such a folder.

Each layout is one file with `LAYOUT`, where its weights are, and two functions. `settings(config)` gives the
options of model `language` for its config.json; `config(model)` gives that file's content for a model.
"""
