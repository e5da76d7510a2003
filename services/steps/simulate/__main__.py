"""`python -m anabranch.services.steps.simulate`."""

from anabranch.services.steps.serve import serve
from anabranch.services.steps.simulate.step import simulate

if __name__ == "__main__":
    serve(simulate)
