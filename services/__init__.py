"""The services: each is one process, `python -m anabranch.services.<name>`."""
