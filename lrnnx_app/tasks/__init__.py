"""Tasks: Lightning modules with loss and metrics, found by file name (`task.name`)."""
