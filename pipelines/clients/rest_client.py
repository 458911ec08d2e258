"""Ask a model behind TF Serving's REST API: TF Serving itself, or `python -m gpt_keras.serve`.

python pipelines/clients/rest_client.py "Once upon a time" --model default --temperature 0.8
"""

import argparse
import sys

import requests


def generate(url: str, model: str, texts: list[str], **options: float) -> list[dict[str, object]]:
    """Text, token counts and finish reason for each text; options as in the signature `generate`."""
    instances = [{"text": text, **options} for text in texts]
    body = {"signature_name": "generate", "instances": instances}
    answer = requests.post(f"{url}/v1/models/{model}:predict", json=body, timeout=120)
    if not answer.ok:
        raise SystemExit(f"{answer.status_code}: {answer.json()['error']}")
    return answer.json()["predictions"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--url", default="http://127.0.0.1:8501")
    parser.add_argument("--model", default="default")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    options = {"max_new_tokens": given.max_new_tokens, "temperature": given.temperature, "seed": given.seed}
    for text, found in zip(given.texts, generate(given.url, given.model, given.texts, **options), strict=True):
        sys.stdout.write(f"{text}{found['generated_text']}\n")


if __name__ == "__main__":
    main()
