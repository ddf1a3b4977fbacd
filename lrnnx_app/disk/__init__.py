"""Files and folders: whole or absent, walked, cached, read as plain YAML."""
