"""`python -m anabranch.services.steps.html`."""

from anabranch.services.steps.html.settings import HtmlSettings
from anabranch.services.steps.html.step import html
from anabranch.services.steps.serve import serve

if __name__ == "__main__":
    serve(html, HtmlSettings())
