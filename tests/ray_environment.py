"""What Ray is told in the tests: what the program tells it, and what saves processes and waiting."""

from pipelines.cluster.connection import LOCAL_ENVIRONMENT

ENVIRONMENT = LOCAL_ENVIRONMENT | {
    # Ray's workers have their share of a busy machine, as whoever waits for them; by default they give way.
    "RAY_worker_niceness": "0",
    # One process less for each start of training; no test takes a node away with a warning before.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # One process less for each Ray; the head of the cluster tests has it, for the dashboard.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    # The S3 servers of the tests take any key, but Ray's workers must have one.
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    # The dashboard's look at the machine, every so many milliseconds.
    "REPORTER_UPDATE_INTERVAL_MS": "15000",
}
