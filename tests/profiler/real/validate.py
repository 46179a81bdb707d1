"""Run by the Python of vLLM's environment, which has jsonschema: every line of some logs against the schema.

Prints the number of valid lines; fails at the first other one.
"""

import json
import sys
from importlib.resources import files

from jsonschema import Draft202012Validator

schema = json.loads(files("bayes_sched_profiler").joinpath("step.schema.json").read_text())
Draft202012Validator.check_schema(schema)
validator = Draft202012Validator({**schema, "additionalProperties": False})
count = 0
for name in sys.argv[1:]:
    with open(name) as file:
        for line in file:
            validator.validate(json.loads(line))
            count += 1
print(count)
