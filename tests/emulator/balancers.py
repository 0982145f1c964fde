"""Load balancers: a network load balancer's ARN says so, as clients and metrics expect; moto writes ``app`` in all."""

from __future__ import annotations

from typing import Any

from moto.elbv2.models import ELBv2Backend, FakeLoadBalancer


def install() -> None:
    create = ELBv2Backend.create_load_balancer

    def create_load_balancer(self: ELBv2Backend, *args: Any, **kwargs: Any) -> FakeLoadBalancer:
        made = create(self, *args, **kwargs)
        if made.type == "network":
            tags = self.tagging_service.get_tag_dict_for_resource(made.arn)
            self.tagging_service.delete_all_tags_for_resource(made.arn)
            del self.load_balancers[made.arn]
            made.arn = made.arn.replace(":loadbalancer/app/", ":loadbalancer/net/")
            made.dns_name = f"{made.name}-{made.arn.rsplit('/', 1)[1]}.elb.{self.region_name}.amazonaws.com"
            self.load_balancers[made.arn] = made
            self.tagging_service.tag_resource(made.arn, [{"Key": k, "Value": v} for k, v in tags.items()])
        return made

    ELBv2Backend.create_load_balancer = create_load_balancer
