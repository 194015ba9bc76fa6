"""python -m fastboot"""

from fastboot.cli import main

main()
