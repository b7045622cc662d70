#!/usr/bin/env python3
"""Runs every query of fieldgate.json against a Prometheus that scrapes a gateway under load, and says which give no data.

    make demo DEMO_ARGS=--keep                      # in another terminal; let it run for a minute
    prometheus --config.file=deploy/prometheus/demo.yml --storage.tsdb.path="$(mktemp -d)" &
    deploy/grafana/check.py http://127.0.0.1:9090
"""

import json
import math
import pathlib
import sys
import urllib.error
import urllib.parse
import urllib.request

VARIABLES = {
    "$__rate_interval": "30s",
    "$__interval": "30s",
    "$instance": ".*",
    "$workload": ".*",
    "$rule": ".*",
}


def ask(prometheus, expression):
    query = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"{prometheus}/api/v1/query?{query}", timeout=10) as answer:
            return json.load(answer)["data"]["result"], None
    except urllib.error.HTTPError as error:
        return [], json.load(error).get("error", str(error))


def main():
    prometheus = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:9090"
    dashboard = json.loads(pathlib.Path(__file__).with_name("fieldgate.json").read_text())
    failed = passed = 0
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            result, error = ask(prometheus, expression)
            numbers = [s for s in result if math.isfinite(float(s["value"][1]))]
            if numbers:
                passed += 1
                print(f"ok    {panel['title']}: {len(numbers)} series")
            else:
                failed += 1
                print(f"FAIL  {panel['title']}: {error or 'no data'}: {expression}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
