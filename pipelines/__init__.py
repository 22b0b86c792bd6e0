import os

from pipelines.cluster.connection import LOCAL_ENVIRONMENT

if not os.environ.get("RAY_ADDRESS"):
    for _name, _value in LOCAL_ENVIRONMENT.items():  # Ray reads some of it when it is first imported
        os.environ.setdefault(_name, _value)
