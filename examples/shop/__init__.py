"""A project of several files. Each has a TaskRegistry of its own, and app.py puts them together.

In the folder examples/, in two terminals:

    backstage worker shop.app:worker
    python -m shop.place_orders
"""
