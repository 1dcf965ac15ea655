#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Publish a checkpoint on the Hub, with its model card, image processor and code.

    python examples/publish.py CHECKPOINT organisation/name --license apache-2.0

With --stock it goes up as the class of Transformers that gives the same results, so that the page's inference widget,
Inference Endpoints and everyone's Transformers run it without further code. Log in first (`hf auth login`), or set
HF_TOKEN. An upload that broke off goes on when the same command is given again.
"""

from pathlib import Path

from supmae_hf.cli import Parser, run
from supmae_hf.hub import publish, staged


def main():
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="the folder of a SupMAE checkpoint")
    parser.add_argument("repo_id", help="organisation/name on the Hub")
    parser.add_argument("--card", type=Path, help="the model card; default: README.md in the folder")
    parser.add_argument("--license", help="licence of the weights, such as apache-2.0; default: what the card says")
    parser.add_argument("--stock", action="store_true", help="publish the exact export to a class of Transformers")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to commit to")
    parser.add_argument("--dry_run", action="store_true", help="list what would be uploaded")
    args = parser.parse_args()

    what = {"card": args.card, "license": args.license, "stock": args.stock}
    try:
        if args.dry_run:
            with staged(args.checkpoint, args.repo_id, **what) as folder:
                print(f"To {args.repo_id}:")
                for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                    print(f"  {file.stat().st_size:>12,} bytes  {file.relative_to(folder).as_posix()}")
            return
        commit = publish(args.checkpoint, args.repo_id, private=args.private, revision=args.revision, **what)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    except Exception as error:  # the Hub client's, of whichever HTTP library it uses
        parser.exit(
            1,
            f"Not published: {type(error).__name__}: {error}\nWhat has been sent is not sent again when you repeat the command.\n",
        )
    print(f"Published: {commit.commit_url}")


if __name__ == "__main__":
    run(main)
