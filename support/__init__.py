"""What the script stands on: machinery that a reader of the method need not open."""

import sys

if sys.version_info < (3, 10):
    print('Python 3.10 to 3.13 is needed, this is ' + sys.version.split()[0], file=sys.stderr)
    sys.exit(2)
