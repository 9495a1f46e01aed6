"""What the script stands on: machinery that a reader of the method need not open."""

import sys

if sys.version_info < (3, 10):
    cure = '; with such a one, pip install -r requirements.txt'
    print(
        'Python 3.10 to 3.13 is needed, this is ' + sys.version.split()[0] + cure, file=sys.stderr
    )
    sys.exit(2)
