"""Files and interfaces of other projects."""
