//! Tests of the whole: processes, sockets, and a real VMM with a Linux guest.

#![cfg(test)]

mod access;
mod agent;
mod control;
mod ctl;
mod device;
mod doze;
mod driver;
mod e1000;
mod fault;
mod guest;
mod hostile;
mod limits;
mod logs;
mod migration;
mod plug;
mod probe;
mod python;
mod runtime;
mod service;
mod stats;
mod update;
mod watch;
