"""Files and folders: written whole or not at all, listed, cached, and read as plain YAML."""
