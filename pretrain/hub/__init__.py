"""What a run sends to the Hugging Face Hub while it trains: a process of its own follows it and uploads checkpoints.

process.py    the run's side: starts that process, waits for it at the end
follower.py   the process
__main__.py   the same work once, on demand
uploader.py   exports and uploads, and tries again
outbox.py     what waits and what is due
record.py     uploads.json: what has arrived
upload.py     one folder -> one revision
"""
