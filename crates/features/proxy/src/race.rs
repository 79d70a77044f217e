//! Who answers first gets the connection ([RFC 8305], "Happy Eyeballs").
//!
//! In: the endpoint that the balancer chose. Out: a TCP connection to it; or, when it has not
//! answered within a quarter of a second, to the first of it and others that does, those of the
//! other address family tried first. Promise: a family or an endpoint whose packets vanish costs
//! that quarter of a second, not a connect timeout, and is avoided from then on.
//!
//! [RFC 8305]: https://www.rfc-editor.org/rfc/rfc8305

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::balance::Endpoint;
use crate::error::Reason;
use crate::pool::{MOST_TRIES, Pool, Ticket};

/// How long each is tried before the next is tried beside it ([RFC 8305], section 5).
///
/// [RFC 8305]: https://www.rfc-editor.org/rfc/rfc8305
const HEAD_START: Duration = Duration::from_millis(250);

/// An endpoint that is being connected to.
struct Runner<'a> {
    endpoint: Rc<Endpoint>,
    connecting: Pin<Box<dyn Future<Output = Result<TcpStream, Reason>> + 'a>>,
}

impl Pool {
    /// A TCP connection to the ticket's endpoint, or to another that was there first; the ticket is for that one then.
    /// Cancel-safe.
    pub(crate) async fn race(&self, ticket: &mut Ticket) -> Result<TcpStream, Reason> {
        if self.endpoints() < 2 {
            return self.tcp(ticket.endpoint.address).await;
        }
        let mut tried = vec![Rc::clone(&ticket.endpoint)];
        let mut runners = vec![self.start(&ticket.endpoint)];
        loop {
            let pause = pin!(sleep(HEAD_START));
            let finished = tokio::select! {
                biased;
                finished = poll_fn(|cx| poll_first(cx, &mut runners)) => Some(finished),
                () = pause => None,
            };
            match finished {
                Some((winner, Ok(stream))) => {
                    // Who started before and is not there yet lets nobody wait again for a while.
                    let now = Instant::now();
                    let earlier = tried.iter().take_while(|one| !Rc::ptr_eq(one, &winner));
                    earlier.filter(|one| runners.iter().any(|runner| Rc::ptr_eq(&runner.endpoint, one))).for_each(
                        |slow| {
                            tracing::debug!(component = "proxy", cluster = self.cluster.name, address = %slow.address, "slow to connect; another was first");
                            slow.failed(now);
                        },
                    );
                    if !Rc::ptr_eq(&winner, &ticket.endpoint) {
                        ticket.move_to(winner);
                    }
                    return Ok(stream);
                }
                Some((loser, Err(reason))) => {
                    if runners.is_empty() {
                        // The last one's failure is noted by who tries the next.
                        if !Rc::ptr_eq(&loser, &ticket.endpoint) {
                            ticket.move_to(loser);
                        }
                        return Err(reason);
                    }
                    self.failed(&loser);
                }
                None => {
                    if tried.len() < MOST_TRIES
                        && let Some(next) = self.beside(&tried, Instant::now())
                    {
                        runners.push(self.start(&next));
                        tried.push(next);
                    }
                }
            }
        }
    }

    fn start(&self, endpoint: &Rc<Endpoint>) -> Runner<'_> {
        let address = endpoint.address;
        Runner { endpoint: Rc::clone(endpoint), connecting: Box::pin(self.tcp(address)) }
    }
}

/// The first that has finished; it runs no longer.
fn poll_first(cx: &mut Context<'_>, runners: &mut Vec<Runner<'_>>) -> Poll<(Rc<Endpoint>, Result<TcpStream, Reason>)> {
    for index in 0..runners.len() {
        if let Poll::Ready(outcome) = runners[index].connecting.as_mut().poll(cx) {
            return Poll::Ready((runners.remove(index).endpoint, outcome));
        }
    }
    Poll::Pending
}
