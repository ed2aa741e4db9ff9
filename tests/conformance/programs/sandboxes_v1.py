"""The same with the first generation of sandboxes, for clients that would use the second."""

import os

os.environ["MODAL_SANDBOX_V2"] = "0"
os.environ["MODAL_USE_LEGACY_FILESYSTEM_SNAPSHOT"] = "1"

import sandboxes

if __name__ == "__main__":
    sandboxes.main()
