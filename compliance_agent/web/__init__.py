"""The evidence viewer: sites, hosts, checks, evidence, and one bundle with its verification done live.

Pages are rendered on the server and read without scripts; a script only keeps tables fresh and shows times in the reader's
zone. Everything a host says is escaped, nothing is loaded from elsewhere, and the Content-Security-Policy says so too.

    views      the routes: ask a service, build a page, render it
    pages      what the templates are given: frozen values, words and figures ready to print
    timeline   where the bars and marks of the history picture stand
    words      sentences for verdicts, reasons, outcomes and actions
    orders     the acts: draft, approve and withdraw what is asked of hosts (asking: the same in words)
    streams    tells live pages that something changed
    security   response headers, the session cookie, the form token
    assets     static files, named by their content
    rendering  the template engine
"""
