//! Real agents in the lab: what survives their end, what they make of sources that misbehave, what they leave behind. Each
//! file has the tests of one topic.

mod api;
mod changes;
mod confined;
mod hostile;
mod input;
mod pins;
mod privileges;
mod repair;
mod restart;
mod shop;
