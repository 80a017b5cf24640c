/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How the helpers are named. They are compiled once per driver; XENPCI_PREFIX
 * (see rust/library.mk) keeps the copies apart when both drivers are built in.
 */
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
/* Declares before it defines: the kernel wants a prototype for each function. */
#define HELPER(ret, name, ...)					\
	ret PASTE(XENPCI_PREFIX, name)(__VA_ARGS__);		\
	ret PASTE(XENPCI_PREFIX, name)(__VA_ARGS__)
