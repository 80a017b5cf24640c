/* SPDX-License-Identifier: GPL-2.0 */
/* The Xen headers whose declarations the `xen` crate uses. */
#include <linux/hrtimer_types.h>
#include <linux/pci.h>
#include <xen/xen.h>
#include <xen/xenbus.h>
#include <xen/page.h>
#include <xen/pci.h>
#include <xen/events.h>
#include <xen/grant_table.h>
#include <xen/interface/xen.h>
#include <xen/interface/physdev.h>
#include <xen/interface/io/pciif.h>
#include <asm/xen/hypervisor.h>
#include <asm/xen/pci.h>
#include <xen/platform_pci.h>
