"""`backstage demo`: a small shop's day, on real processes, told as it happens and read back from the server.

`shop.py` has the tasks and `staff.py` the worker that runs them, as an application would. `day.py` is what happens,
`facts.py` what the server says about it afterwards, `verdict.py` whether that is as it should be.
"""
