"""`python -m anabranch.services.steps.notify`."""

from anabranch.services.steps.notify.settings import NotifySettings
from anabranch.services.steps.notify.step import notify
from anabranch.services.steps.serve import serve

if __name__ == "__main__":
    serve(notify, NotifySettings())
