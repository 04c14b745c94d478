"""One file a job; each has `run(config, workdir)`."""
