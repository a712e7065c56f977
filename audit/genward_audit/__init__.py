"""A transparency log in the public C2SP formats: writer, receipts, witness and an offline verifier.

It imports none of its neighbours. Doors: `genward_audit.client.connect` to write, `genward_audit.verify.verify_folder`
to check a folder, `genward_audit.reader.LogFolder` to read one.
"""
