//! What a Service does, row by row of `docs/behaviour.md`: real agents, real packets. Each file has the rows of one topic.

mod adoption;
mod announce;
mod dns;
mod doors;
mod elected;
mod feed;
mod health;
mod kinds;
mod maps;
mod node_ports;
mod objects;
mod offloads;
mod pools;
mod ports;
mod resolver;
mod shop;
mod slices;
mod table;
