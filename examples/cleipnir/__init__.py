"""The examples of Cleipnir.NET's pages, in Perdure: one small program each. docs/coming-from-cleipnir.md compares them.

Buses, clients and services are small objects in the same file. What such an object prints it did.
"""
