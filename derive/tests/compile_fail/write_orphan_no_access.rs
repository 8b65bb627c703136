use shmkit::sync::WriteOrphan;

fn peek(orphan: WriteOrphan<'_, u32>) -> u32 {
    *orphan
}

fn main() {}
