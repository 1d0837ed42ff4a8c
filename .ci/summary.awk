# Sums up the output of `cargo test` over all test binaries: the names of what
# failed, then one line of counts. Takes cargo's exit status as `status`, and
# ends with it.

function fail(name) { failures[++listed] = name }

{ gsub(/\033\[[0-9;]*m/, "") }

/^ +Running / || /^ +Doc-tests / {
    binary = $0
    sub(/^ +(Running )?/, "", binary)
    finished = 0
    names = 0
}

# libtest prints this heading twice: over the failed tests' output, and at the
# end over their names. Only what follows the last one counts.
/^failures:$/ { names = 0; listing = 1; next }
listing && /^    [^ ]/ { name[++names] = substr($0, 5) }

/^test result: / {
    for (i = 1; i <= names; i++) fail(name[i] "  (" binary ")")
    names = 0
    listing = 0
    finished = 1
    for (i = 1; i < NF; i++) {
        if ($(i + 1) == "passed;") passed += $i
        if ($(i + 1) == "failed;") failed += $i
        if ($(i + 1) == "ignored;") skipped += $i
    }
}

# A binary that was killed, or that ended by itself, has no result line.
/^error: (doc)?test failed, to rerun pass/ && !finished {
    fail("all or part of " binary ", which did not finish")
    failed++
}

END {
    if (listed) {
        print "\nfailed:"
        for (i = 1; i <= listed; i++) print "    " failures[i]
    }
    if (status + 0 != 0 && failed == 0) {
        print "\ncargo test ended with status " status ", though no test failed: see above"
    }
    printf "\n%d passed, %d failed, %d skipped\n", passed, failed, skipped
    exit (failed && status + 0 == 0) ? 1 : status
}
