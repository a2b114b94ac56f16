"""`python -m vit`: the commands, one line each."""

from vit.cli.usage import ABOUT

if __name__ == "__main__":
    print("\n".join(f"vit-{command:<8} {about}" for command, about in ABOUT.items()))
    print("\neach with --help; python -m vit.cli.train is vit-train")
