"""VEGA, which asks for packages of 2020; not run so far, see the error in docs/peers.md.

python run_vega.py CASE OUT
"""

# /// script
# requires-python = ">=3.8"
# dependencies = ["scvega==0.0.2"]
# [tool.tadvae-peer]
# python = "3.8"
# job = "pathways"
# cases = ["truth"]
# ///

import vega  # noqa: F401 - as far as it gets
