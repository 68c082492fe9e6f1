"""The examples of Asynkron.DurableFunctions' page, in Perdure: one small program each.

docs/coming-from-asynkron.md compares them. What a step prints it did.
"""
