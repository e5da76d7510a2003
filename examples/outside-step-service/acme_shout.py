"""The `shout` step type, in a repository of its own: `acme-shout` serves it."""

from pydantic import BaseModel

from anabranch.steps import StepContext, TerminalError, serve, step_type


class Words(BaseModel):
    text: str


class Shout(BaseModel):
    text: str


@step_type("shout", version="1.0", description="Say it louder.")
async def shout(words: Words, context: StepContext) -> Shout:
    if not words.text:
        raise TerminalError("there is nothing to shout")
    context.log.info("shouting", length=len(words.text))
    return Shout(text=words.text.upper() + "!")


def main() -> None:
    serve(shout)


if __name__ == "__main__":
    main()
