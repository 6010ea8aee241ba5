"""datadiligence's side, run by the Python of its own environment: asks it about URLs, writes what it answers.

`ask_datadiligence.py PRODUCT URLS.json OUT.json`
"""

import json
import logging
import sys


def main() -> None:
    product, urls, out = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    import datadiligence

    datadiligence.load_defaults(user_agent=product)
    answers = []
    with open(urls) as file:
        for url in json.load(file):
            try:
                answers.append("through" if datadiligence.is_allowed(url=url, user_agent=product) else "refused")
            except Exception as error:
                answers.append(f"raises {type(error).__name__}")
    with open(out, "w") as file:
        json.dump(answers, file)


if __name__ == "__main__":
    main()
