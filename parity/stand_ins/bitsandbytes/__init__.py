"""Stands in for bitsandbytes: the authors' packages derive their 8-bit forms from one class of it.

Those forms are not compared; only the import of the packages must succeed.
"""
