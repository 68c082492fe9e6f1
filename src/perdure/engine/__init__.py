"""The engine: loop, execution (replays and delivers: decides, does no I/O), committer, scheduler, replica, engine."""
