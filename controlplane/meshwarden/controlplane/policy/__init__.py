"""Resources to what data planes are told: pure, without gRPC, I/O or a clock."""
