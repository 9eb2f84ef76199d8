// Package envs keeps environments: what each has (ports of pools, mappings,
// routes) and what it takes to give it that, or take it back, in one transaction
// of etcd. Either all of an environment's keys are written or none is, so there
// is nothing to roll back and no port to leak.
//
// It owns the keys below envs/ and allocations/, and those below ports/ and
// routes/ that it made for an environment. Which port is chosen is portpool's
// decision; what nodes make of a mapping is said in their verdicts. control/api
// and the commands of sluice call it.
package envs
