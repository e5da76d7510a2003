"""`python -m anabranch.services.steps.http`."""

from anabranch.services.steps.http.step import http
from anabranch.services.steps.serve import serve

if __name__ == "__main__":
    serve(http)
