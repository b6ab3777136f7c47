//! What an exchange costs: sums of as many values as are given, over all ranks.
//!
//! ```text
//! mpirun -n 2 target/release/examples/exchange 5000000 41900000
//! ```

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use olora_mpi::{Launch, Mpi};
use olora_training::{Exchange, sum_over_ranks};

#[expect(clippy::print_stdout, reason = "an example")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(launch) = Launch::from_env(|name| std::env::var(name).ok())? else {
        return Err("start it with mpirun -n 2 or more".into());
    };
    let mpi = Mpi::join(&launch, Duration::from_mins(1), |_, code| {
        std::process::exit(i32::from(code))
    })?;
    let mpi = Arc::new(mpi);
    for argument in std::env::args().skip(1) {
        let n: usize = argument.parse()?;
        let mut seconds = Vec::new();
        for _ in 0..7 {
            let values = vec![mpi.rank() as f32 + 0.1; n];
            // All begin together.
            mpi.gather(Vec::new())?;
            let began = Instant::now();
            let sum = sum_over_ranks(&*mpi, values)?;
            seconds.push(began.elapsed().as_secs_f64());
            assert_eq!(sum.len(), n);
        }
        // The first warms up.
        seconds.remove(0);
        seconds.sort_by(f64::total_cmp);
        let median = seconds[seconds.len() / 2];
        if mpi.rank() == 0 {
            println!("{} ranks, {n} values: {median:.4} s", mpi.n_ranks());
        }
    }
    mpi.finish()?;
    Ok(())
}
