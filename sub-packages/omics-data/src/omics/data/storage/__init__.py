"""The bytes of a store: format, writer, reader, checksums, and many stores read as one."""
