// Package keys is how people change keys other than by etcdctl: checked before
// anything is written, in transactions that do not overwrite what somebody else
// wrote meanwhile, and waited for until every node has said what it made of
// them.
package keys
