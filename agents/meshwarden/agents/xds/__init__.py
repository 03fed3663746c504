"""What the data planes of this node are told: kept on the disk, and served over xDS."""
