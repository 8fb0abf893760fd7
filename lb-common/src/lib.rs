//! Shared heart.
#![no_std]
