"""The order business: three services, an order service that is killed again and again, and the proof that all adds up.

`flow.py` is what a user of Perdure writes, `service.py` the web service around it; the rest is the world it lives in.
"""
